"""The frame that a tokenizer's chat template puts around a user's turn."""

from __future__ import annotations

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerFast

from rotescale.errors import DataError
from rotescale.facts.wording import PROMPT_FIELD


def chat_frame(tokenizer: PreTrainedTokenizerFast) -> str:
    """The text of one user's turn up to where the answer begins, ``{prompt}`` in it once.

    Without the begin-of-text token where the tokenizer puts it in front of every text anyway. A
    template that tells the date gives another frame on another day. Raises DataError where there
    is no template, or it does not hold the prompt as it is.
    """
    if not tokenizer.chat_template:
        raise DataError(
            "model.chat_template: the model's tokenizer has no chat template; set it to false, or "
            "name an instruct model"
        )
    turn = [{"role": "user", "content": PROMPT_FIELD}]
    try:
        rendered = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    except TemplateError as error:
        raise DataError(
            f"model.chat_template: the tokenizer's template refuses a user's turn ({error}); set "
            "it to false"
        ) from error
    frame = str(rendered)
    if frame.count(PROMPT_FIELD) != 1:
        raise DataError(
            f"model.chat_template: the tokenizer's template holds a prompt {PROMPT_FIELD} "
            f"{frame.count(PROMPT_FIELD)} times in {frame!r}; set it to false"
        )
    begin = tokenizer.bos_token
    if begin and tokenizer("x")["input_ids"][0] == tokenizer.bos_token_id:
        frame = frame.removeprefix(begin)
    return frame
