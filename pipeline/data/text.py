"""When two prompts count as the same."""


def comparable(prompt: str) -> str:
    """`prompt` in lower case with every run of white space as one blank."""
    return " ".join(prompt.lower().split())
