import warnings

import pytest


@pytest.fixture(autouse=True)
def _quiet():
    """What PEFT says on every save without a network."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Could not find a config file")
        warnings.filterwarnings("ignore", message="Unable to fetch remote file")
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")
        yield
