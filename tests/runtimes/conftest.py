from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _no_model_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLUSIR_CACHE", "off")
