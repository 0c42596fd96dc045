"""Adds the operators for ONNX Runtime to the wheel, where a C++ compiler is found; without them it works as well."""

import importlib.util
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PLACE = "gossamer/runtime/operators"


class OperatorsHook(BuildHookInterface[Any]):
    """Called by hatchling before it packs."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build the library, and mark the wheel as one of this platform."""
        if version == "editable":
            return
        found = importlib.util.spec_from_file_location("build", Path(self.root, PLACE, "build.py"))
        assert found is not None and found.loader is not None
        build = importlib.util.module_from_spec(found)
        found.loader.exec_module(build)
        library = Path(self.root, "build", build.LIBRARY)
        try:
            build.build_library(library)
        except OSError as error:
            self.app.display_warning(f"the wheel goes without the operators for ONNX Runtime: {error}")
            return
        build_data["force_include"][str(library)] = f"{PLACE}/source/{build.LIBRARY}"
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"
