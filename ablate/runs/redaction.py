"""Words of others, such as a library's exception, without the secrets that may be in them."""

from __future__ import annotations

import os
import re

HIDDEN = "***"
MIN_SECRET_CHARACTERS = 8  # a shorter value of a variable may be a word of any text
VARIABLE = re.compile(r"key|token|secret|passw(or)?d|passphrase|cookie|credential", re.IGNORECASE)
# Not every "key" or "token": those are words of this program's own sentences.
GIVEN = r"(api|access|secret|private)[_-]?key|client[_-]?secret|passw(or)?d|passphrase|authorization|cookie"
TO = r"['\"]?\s*[=:]\s*['\"]?((bearer|basic|token)\s+)?"
FORMS = (
    re.compile(r"(?P<kept>://[^/@:\s]*:)[^/@\s]+(?=@)"),  # user:password@host
    re.compile(rf"(?P<kept>\b[\w-]*({GIVEN}){TO})[^\s'\"&,;]{{4,}}", re.IGNORECASE),
    re.compile(r"(?P<kept>\b[A-Z][A-Z0-9_]*_(KEY|TOKEN|SECRET)['\"]?\s*[=:]\s*['\"]?)[^\s'\"&,;]{4,}"),
    re.compile(r"(?P<kept>\b(bearer|basic)\s+)[A-Za-z0-9._~+/=-]{8,}", re.IGNORECASE),
)


def redacted(text: str) -> str:
    """The text with *** for passwords in addresses, for what is given as a key, a token or a password, and for the
    values of this process's variables that are named like secrets.
    """
    for name, value in os.environ.items():
        if VARIABLE.search(name) and len(value) >= MIN_SECRET_CHARACTERS:
            text = text.replace(value, HIDDEN)
    for form in FORMS:
        text = form.sub(lambda found: found["kept"] + HIDDEN, text)
    return text
