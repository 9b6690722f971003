"""How hypothesis draws its examples in this suite."""

from hypothesis import settings

# The suite draws the same examples each time, so that what passes today passes tomorrow; new ones are looked for by
# `pytest --hypothesis-profile=explore`, on a desk, where what is found can be mended at once.
settings.register_profile("suite", derandomize=True, deadline=None)
settings.register_profile("explore", derandomize=False, deadline=None)
settings.load_profile("suite")
