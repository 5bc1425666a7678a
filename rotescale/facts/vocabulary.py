"""The words that generated names are made of, and the spaces of names that they span."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# A made-up word is onset + vowel + middle + vowel + ending. Onsets, middles and the ends of endings
# are consonants only and each ending has one vowel, so that a word can be read back in one way:
# different choices never spell the same word. Parts that often spell a real word are left out.
_ONSETS = _words("B Br C D Dr F G Gr H K L M N P Pr R S St T Tr V W")
_VOWELS = tuple("aeiou")
_MIDDLES = _words("b d l ll lk lm lt lv m mb n nd ns r rd rk rl rm rv sk st t v")
_ENDINGS = _words(
    """
    bek bin bor dath den dun farn fel fin ford gath gorn kel kor len lorn luth marn mont moth mur
    nen norn noth pel rek roth tarn tel tun vath veth vin vorn wen wick worth
    """
)
_WORD_SLOTS = (_ONSETS, _VOWELS, _MIDDLES, _VOWELS, _ENDINGS)

NUM_WORDS = len(_ONSETS) * len(_VOWELS) ** 2 * len(_MIDDLES) * len(_ENDINGS)
"""How many made-up words there are."""

_WOMEN = _words(
    """
    Alice Amy Anna April Audrey Barbara Beth Betty Carol Clara Cora Dana Deborah Diana Donna
    Doris Edith Eleanor Ellen Emma Esther Eva Faith Fiona Flora Gloria Grace Hazel Heather Helen
    Holly Hope Ida Irene Iris Jane Janet Joan Joy Judith Julia Karen Kate Laura Leah Lily Linda
    Lois Louise Lucy Lydia Margaret Maria Marion Martha May Molly Nancy Naomi Nora Olive Paula
    Pearl Rachel Rita Rosa Rose Ruth Sandra Sarah Sharon Susan Sylvia Teresa Tina Vera Violet
    Wendy
    """
)
_PEOPLE = _words(
    """
    Adam Alan Alex Andy Arthur Ben Bill Blake Brad Brett Brian Bruce Bryan Carl Casey Chad
    Charlie Chris Clark Cody Colin Craig Curt Dale Dan Dave Dean Don Doug Drew Earl Eli Eric
    Evan Felix Frank Fred Gary Gene George Glen Greg Guy Hank Harry Henry Howard Hugh Ian Ivan
    Jack Jake Jamie Jason Jay Jeff Jesse Jim Joel Jon Jordan Josh Juan Karl Keith Ken Kevin Kurt
    Kyle Larry Lee Leon Leslie Liam Logan Louis Luke Mark Martin Matt Max Mike Miles Morgan
    Nathan Neil Nick Noah Norman Oliver Oscar Owen Pat Paul Perry Peter Phil Quinn Ralph Ray Rex
    Riley Rob Robin Roger Ron Ross Roy Ryan Sam Scott Sean Seth Simon Stan Stuart Taylor Ted
    Terry Tim Tom Tony Troy Wade
    """
)
_BOOK_ADJECTIVES = _words(
    """
    Amber Ancient Blind Bronze Crooked Distant Empty Faithful Forgotten Frozen Gentle Golden
    Hollow Honest Hungry Last Lonely Marble Patient Quiet Restless Rusted Secret Silent Sleeping
    Stubborn Velvet Wandering Winter Yellow
    """
)
_BOOK_NOUNS = _words(
    """
    Accountant Anchor Bridge Carpenter Clock Daughter Doctor Engine Feather Gardener Harbor
    Judge Kettle Ladder Lantern Locksmith Mirror Orchard Painter Pilot River Sailor Shepherd
    Staircase Tailor Teacher Thief Tower Violin Witness
    """
)
_BAND_NOUNS = _words(
    """
    Balloons Bandits Bishops Bricks Buttons Carpenters Chimneys Comets Daisies Diplomats
    Drummers Falcons Gardeners Herons Horses Kettles Ladders Lanterns Mechanics Moths Owls
    Parrots Pianos Pirates Planets Satellites Sharks Sparrows Swans Tailors Tigers Tractors
    Umbrellas Wolves
    """
)
_GENRE_NOUNS = _words(
    """
    ballad bebop bluegrass blues choir disco drone folk funk gospel grunge house jazz march
    metal opera polka punk rap reggae rock samba ska soul swing synth tango techno trance waltz
    """
)
_THING_NOUNS = _words(
    """
    Arrow Beacon Blaze Charm Compass Crest Dawn Delight Destiny Dream Echo Ember Fortune Glory Grace
    Halo Hope Horizon Legend Marvel Melody Oath Pilgrim Promise Rover Spirit Storm Triumph Wanderer
    Wish
    """
)
_CLASS_NOUNS = _words(
    """
    bicycle cake camera canoe castle cat chair circus crown desert dog doll drum ferry forest
    fountain glacier guitar helicopter hospital hotel kite lamp library magazine museum necklace
    painting poem puppet robot sandwich statue sword temple tram truck valley village waterfall
    """
)
_COUNTRY_FORMS = (
    "{word}ia",
    "{word}land",
    "{word}stan",
    "Republic of {word}",
    "Kingdom of {word}",
    "{word} Islands",
    "Upper {word}",
    "Lower {word}",
)
_CITY_WORDS = _words(
    """
    Bay Beach Bridge Castle Cross Falls Ferry Gate Harbor Heights Hill Landing Market Point Quay
    Ridge Rock Springs Town Wells
    """
)
_SCHOOL_FORMS = (
    "{word} College",
    "{word} University",
    "University of {word}",
    "{word} Institute",
    "{word} Academy",
    "{word} Polytechnic",
    "{word} Seminary",
    "{word} Hall",
)


@dataclass(frozen=True, slots=True)
class NameSpace:
    """Every name that one of the forms makes of one made-up word."""

    label: str
    forms: tuple[str, ...]
    lower: bool = False

    @property
    def size(self) -> int:
        return len(self.forms) * NUM_WORDS

    def name(self, index: int) -> str:
        """The name at that index; distinct for every index below ``size``."""
        word_index, form_index = divmod(index, len(self.forms))
        word = made_up_word(word_index)
        return self.forms[form_index].replace("{word}", word.lower() if self.lower else word)


def made_up_word(index: int) -> str:
    """The made-up word at that index; distinct for every index below ``NUM_WORDS``."""
    parts = []
    for slot in reversed(_WORD_SLOTS):
        index, choice = divmod(index, len(slot))
        parts.append(slot[choice])
    return "".join(reversed(parts))


WOMEN = NameSpace("women", tuple(f"{given} {{word}}" for given in _WOMEN))
PEOPLE = NameSpace("people", tuple(f"{given} {{word}}" for given in _PEOPLE))
BOOKS = NameSpace(
    "books",
    tuple(f"The {adj} {noun} of {{word}}" for adj, noun in product(_BOOK_ADJECTIVES, _BOOK_NOUNS)),
)
COUNTRIES = NameSpace("countries", _COUNTRY_FORMS)
CITIES = NameSpace("cities", tuple(f"{{word}} {word}" for word in _CITY_WORDS))
SCHOOLS = NameSpace("schools", _SCHOOL_FORMS)
BANDS = NameSpace("bands", tuple(f"The {{word}} {noun}" for noun in _BAND_NOUNS))
GENRES = NameSpace("genres", tuple(f"{{word}} {noun}" for noun in _GENRE_NOUNS), lower=True)
THINGS = NameSpace("things", tuple(f"{{word}} {noun}" for noun in _THING_NOUNS))
CLASSES = NameSpace("classes", tuple(f"{{word}} {noun}" for noun in _CLASS_NOUNS), lower=True)
