"""Subjects and patterns as NATS understands them."""

from __future__ import annotations


def check_subject(subject: str) -> str:
    """Something that can be published to; otherwise a ValueError."""
    if not subject or any(character.isspace() for character in subject):
        raise ValueError(f"not a subject: {subject!r}")
    return subject


def check_pattern(pattern: str) -> str:
    """Something that can be subscribed to; otherwise a ValueError."""
    tokens = check_subject(pattern).split(".")
    for position, token in enumerate(tokens, start=1):
        wild = token == "*" or (token == ">" and position == len(tokens))
        if not token or (not wild and ("*" in token or ">" in token)):
            raise ValueError(f"not a pattern of subjects: {pattern!r}")
    return pattern


def is_wild(pattern: str) -> bool:
    """Whether it stands for more than one subject."""
    return "*" in pattern or pattern.endswith(">")


def matches(pattern: str, subject: str) -> bool:
    """`*` stands for one token, a final `>` for one or more."""
    wanted, given = pattern.split("."), subject.split(".")
    if wanted[-1] == ">":
        wanted.pop()
        if len(given) <= len(wanted):
            return False
        given = given[: len(wanted)]
    return len(wanted) == len(given) and all(
        token in ("*", its) for token, its in zip(wanted, given, strict=True)
    )
