"""What both folders of tests share: `program` needs no torch, `torch` does."""

import os
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODELS = ROOT / "fixtures/models"


def pytest_configure() -> None:
    """The program under test: $PTPLUS, the one that was built beside the sources, or the one that is installed."""
    built = ROOT / "target/debug/ptplus"
    if "PTPLUS" not in os.environ and built.exists():
        os.environ["PTPLUS"] = str(built)


@pytest.fixture
def fixture(tmp_path: Path):
    """A copy of a fixture's folder, by name."""

    def copy(name: str) -> Path:
        return Path(shutil.copytree(MODELS / name, tmp_path / name))

    return copy
