from __future__ import annotations

from pathlib import Path

import pytest

from deploy.local.paths import Layout


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    made = Layout(
        checkout=Path(__file__).resolve().parents[2],
        cache=tmp_path / "cache",
        state=tmp_path / "state",
        run=tmp_path / "run",
    )
    made.make_folders()
    return made
