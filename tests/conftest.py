"""How every test runs: one thread, this clone's source, a cache outside the user's home."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

# Set before torch is imported (not here: many tests never need it) and inherited by the processes
# that tests start. Equality to the bit holds for one thread in each process.
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[name] = "1"

SRC = str(Path(__file__).resolve().parents[1] / "src")
if SRC not in os.environ.get("PYTHONPATH", "").split(os.pathsep):
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (SRC, os.environ.get("PYTHONPATH"))))

# The trained teachers of worlds are kept from one test run to the next: one place for each user of
# the machine, never the cache in that user's home.
USER = os.getuid() if hasattr(os, "getuid") else "user"
CACHE = Path(tempfile.gettempdir()) / f"limbeck-test-cache-{USER}"
CACHE.mkdir(mode=0o700, exist_ok=True)
os.environ["LIMBECK_CACHE"] = str(CACHE)


@pytest.fixture
def browse(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """A page in a browser without a window; what it complains of is in `stderr` as CONSOLE."""
    found = shutil.which("chromium") or shutil.which("google-chrome")
    if not found:
        pytest.skip("needs chromium")

    def browse(page: Path, *flags: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [found, "--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
             f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=3000", "--dump-dom",
             *flags, page.as_uri()],
            capture_output=True, text=True, timeout=120, check=True,
        )  # fmt: skip

    return browse


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked gpu where there is none; torch is asked only if such a test is chosen."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="no GPU here"))
