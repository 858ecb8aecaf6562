"""Letters in text of a job's that a reader does not see, or that make him read it otherwise than it is."""

from __future__ import annotations

import re

# Control characters but tab and newline, line separators, marks that reorder text on screen, letters without a shape (joiners, fillers, soft
# hyphen, tags), lone surrogates, and private uses, which a font may draw as anything. A variation selector may follow a symbol: most emoji
# have one.
HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202e\u2060-\u206f\u2800\u3164"
    "\ud800-\udfff\ue000-\uf8ff\ufe00-\ufe0d\ufeff\uffa0\ufff0-\ufffb\U000e0000-\U000e0fff\U000f0000-\U0010ffff]"
    "|(?<![\xa9\xae\u203c-\u3299\U0001f000-\U0001faff])[\ufe0e\ufe0f]"
)


def written_out(letter: str) -> str:
    """As in Python: ``\\x1b``, ``\\u202e``, ``\\U000e0041``."""
    code = ord(letter)
    return f"\\x{code:02x}" if code < 1 << 8 else f"\\u{code:04x}" if code < 1 << 16 else f"\\U{code:08x}"
