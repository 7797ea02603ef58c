"""What pyproject.toml cannot say: a wheel carries the recorded runs and the published numbers of the book."""

from pathlib import Path
from shutil import copyfile, rmtree

from setuptools import setup
from setuptools.command.build_py import build_py

KINDS = ("results", "published")  # folders of book/, read by robrep.book.results where there is no checkout
SUFFIXES = (".json", ".safetensors")


class BuildWithRecords(build_py):
    """Copies book/<kind> to robrep/_recorded/<kind>; an editable installation reads the checkout itself."""

    def records(self) -> dict[str, str]:
        """Where each file goes in the build folder, and where it comes from."""
        files = (path for kind in KINDS for path in sorted(Path("book", kind).rglob("*")) if path.suffix in SUFFIXES)
        folder = Path(self.build_lib, "robrep", "_recorded")
        return {str(folder / path.relative_to("book")): str(path) for path in files}

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        rmtree(Path(self.build_lib, "robrep", "_recorded"), ignore_errors=True)  # of an earlier build in this folder
        for target, source in self.records().items():
            Path(target).parent.mkdir(parents=True, exist_ok=True)
            copyfile(source, target)

    def get_source_files(self) -> list[str]:
        return [*super().get_source_files(), *([] if self.editable_mode else self.records().values())]

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        return [*super().get_outputs(include_bytecode), *([] if self.editable_mode else self.records())]


setup(cmdclass={"build_py": BuildWithRecords})
