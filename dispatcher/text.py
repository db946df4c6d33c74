"""Cut texts for logs, monitors and evidence, and hide what looks like a secret in them.

Celery puts argsrepr and kwargsrepr into the headers, where every monitor shows and every worker logs them.
Free text, such as the log of a lab that failed, is searched for the usual forms of a secret: too much is
hidden rather than too little, and a secret in a form of its own is not found.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

#: Longest argsrepr and kwargsrepr in characters, as in Celery.
MAX_CHARACTERS = 1024
HIDDEN = "***"

#: Parts of names whose values are hidden; a name is compared in lower case, without _ and -.
_SECRET_NAMES = (
    "passw", "pwd", "secret", "token", "apikey", "privatekey", "credential", "authorization", "cookie", "dsn",
)  # fmt: skip
# Each pattern looks at a character a fixed number of times: the text may be a lab's, and while `re` searches,
# all threads of the process wait. So each begins where a word does, and repeats without a limit only what
# cannot be followed by more of the same.
#: The password of scheme://user:password@host
_URL_PASSWORD = re.compile(r"(?<=://)([^/@\s:]*):[^/\s]*@")
#: User and password of https://user:password@host: either may be a token; of amqp://user@host it is a name.
_URL_TOKEN = re.compile(r"(?i)(?:(?<=http://)|(?<=https://))[^/?#:\s\"'<>\\]+(?::[^/\s]*)?@")
#: user:password@host without a scheme; not the digest of name:tag@sha256:...
_USER_PASSWORD = re.compile(r"(?<![\w./:@+-])([\w.+-]{1,64}):[^\s/@\"']{1,128}@(?!sha256:)(?=\w)")
#: A private key, also when the text begins or ends in the middle of its block.
_KEY_BLOCK = re.compile(
    r"-----BEGIN [A-Z ]{0,20}PRIVATE KEY.*?(?:-----END [A-Z ]{0,20}PRIVATE KEY-----|\Z)"
    r"|\A(?:(?!-----BEGIN).)*?-----END [A-Z ]{0,20}PRIVATE KEY-----",
    re.DOTALL,
)
#: A line of a PEM block whose head was cut off.
_BASE64_LINE = re.compile(r"(?m)^[^\S\n]{0,9}[A-Za-z0-9+/]{60,}+={0,2}[^\S\n]{0,9}$")
_HEADER = re.compile(r"(?i)\b((?:proxy-)?authorization|(?:set-)?cookie)(\W{0,3}[:=])[^\n]+")
_BEARER = re.compile(r"(?i)\b(bearer|basic)\s{1,40}+[A-Za-z0-9._~+/=-]{6,}")
_NAMED = re.compile(
    r"(?i)((?:passw|pwd|passphrase|(?<![a-z])pass(?==)|secret|token|api[_-]?key|access[_-]?key|private[_-]?key"
    r"|credential|dsn)"
    r"[\w.-]{0,40}+\\?[\"']?(?:\s{0,3}(?:=>?|:)\s{0,3}|(?<=\w)\s{1,40}+(?=\\?[\"'])))"
    r"(?:\\?\"(?:[^\"\\\n]|\\.)*+\"?|'(?:[^'\\\n]|\\.)*+'?|\S+)"
)
_OPTION = re.compile(
    r"(?i)(?<![\w-])(--?[\w-]{0,30}(?:passw|pwd|secret|token|api-?key)[\w-]{0,30}+\s{1,40}+)[^\s-]\S*"
)
#: Forms that say by themselves what they are: AWS, GitHub, GitLab, Slack, JWT, Standard Webhooks.
_KNOWN = re.compile(
    r"\b(?:(?:AKIA|ASIA)[A-Z0-9]{12,}|gh[pousr]_\w{16,}|github_pat_\w{16,}|glpat-[\w-]{16,}"
    r"|xox[abeprs]-[\w-]{10,}|whsec_[A-Za-z0-9+/=]{8,})"
    r"|(?<![\w-])eyJ[\w-]{8,}+\.[\w-]{4,}(?:\.[\w-]*)?"
)
#: An AWS secret access key: 40 characters of base64, unlike a digest in hex.
_AWS_SECRET = re.compile(
    r"(?<![\w+/=])(?=[A-Za-z0-9+/]{40}(?![\w+/=]))"
    r"(?=[^\s]{0,39}[A-Z])(?=[^\s]{0,39}[a-z])(?=[^\s]{0,39}[0-9])[A-Za-z0-9+/]{40}"
)


def cut(text: str, limit: int) -> str:
    """Return a text of at most `limit` characters; one that was longer ends with an ellipsis."""
    return text if len(text) <= limit else text[: limit - 3] + "..."


def safe_repr(value: Any, limit: int = MAX_CHARACTERS) -> str:
    """Return repr(value) with secrets hidden, cut to `limit` characters."""
    text = repr(value)
    if "://" in text or _is_secret_name(text):
        text = repr(redacted(value))
    return cut(text, limit)


def redacted(value: Any) -> Any:
    """Return a copy in which values under secret-like names and secrets in URLs are hidden."""
    if isinstance(value, Mapping):
        return {
            key: HIDDEN if isinstance(key, str) and _is_secret_name(key) else redacted(inner)
            for key, inner in value.items()
        }
    if isinstance(value, (list, tuple)):
        return type(value)(redacted(inner) for inner in value)
    if isinstance(value, str):
        return _without_url_secrets(value)
    return value


def scrubbed(text: str) -> str:
    """Return free text in which whatever looks like a secret is hidden."""
    if "PRIVATE KEY" in text:
        text = _KEY_BLOCK.sub(f"private key {HIDDEN}", text)
    text = _BASE64_LINE.sub(HIDDEN, text)
    text = _HEADER.sub(rf"\1\2 {HIDDEN}", text)
    text = _NAMED.sub(rf"\1{HIDDEN}", without_passwords(text))
    text = _OPTION.sub(rf"\1{HIDDEN}", text)
    return _AWS_SECRET.sub(HIDDEN, text)


def without_passwords(text: str) -> str:
    """Return a sentence in which passwords and tokens are hidden; an image called token:1 stays."""
    text = _without_url_secrets(text)
    text = _USER_PASSWORD.sub(rf"\1:{HIDDEN}@", text)
    text = _BEARER.sub(rf"\1 {HIDDEN}", text)
    return _KNOWN.sub(HIDDEN, text)


def scrubbed_values(value: Any) -> Any:
    """Return a copy of anybody's JSON values in which whatever looks like a secret is hidden."""
    return _scrubbed_texts(redacted(value))


def _without_url_secrets(text: str) -> str:
    return _URL_PASSWORD.sub(rf"\1:{HIDDEN}@", _URL_TOKEN.sub(f"{HIDDEN}@", text))


def _scrubbed_texts(value: Any) -> Any:
    if isinstance(value, str):
        return scrubbed(value)
    if isinstance(value, Mapping):
        return {_scrubbed_texts(key): _scrubbed_texts(inner) for key, inner in value.items()}
    return [_scrubbed_texts(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def printable(text: str) -> str:
    """Return a text with control characters, and what PostgreSQL cannot store, as escapes."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def _is_secret_name(text: str) -> bool:
    # Substrings: a regular expression over a whole payload takes ten times as long.
    plain = text.lower().replace("_", "").replace("-", "")
    return any(name in plain for name in _SECRET_NAMES)
