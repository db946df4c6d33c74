"""placeholder"""
from __future__ import annotations
from collections.abc import Mapping
from deploy.local.paths import Layout
def main(command: str, layout: Layout, environ: Mapping[str, str]) -> int:
    raise NotImplementedError
