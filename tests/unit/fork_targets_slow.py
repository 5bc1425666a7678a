"""A module whose import takes long, for the tests of the fork server."""

import time

time.sleep(5.0)
