"""From a stream of tokens to a stream of text, with stop strings that never show."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase


class TextStream:
    """Text of one answer as its tokens come.

    What cannot be certain yet is held back: bytes of an unfinished character, white space that may turn out to be
    the last, and text that may be the beginning of a stop string. Without `trim` white space at the end is kept.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str], trim: bool = True) -> None:
        self._tokenizer = tokenizer
        self._trim = trim
        self._stop = tuple(stop)
        self._ids: list[int] = []
        self._from = 0  # first token of the window that is decoded again with each new one
        self._window = ""  # text of that window that was taken already
        self._held = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """Add a token; returns the text that is certain now. After a stop string was met, `stopped` is true."""
        self._ids.append(token)
        return self._settle(self._new_text(), last=False)

    def push_text(self, new: str) -> str:
        """Add text whose tokens are not known; returns the text that is certain now, as `push` does."""
        return self._settle(new, last=False)

    def finish(self) -> str:
        """The rest of the text, once no token follows."""
        return "" if self.stopped else self._settle(self._new_text(whole=True), last=True)

    def _new_text(self, whole: bool = False) -> str:
        text = self._decoded()
        if text.endswith("\ufffd") and not whole:
            return ""
        new = text[len(self._window) :]
        self._window = text
        # Decoding the whole answer for every token would take quadratic time; a few tokens are context enough.
        if len(self._ids) - self._from > 16 and not text.endswith("\ufffd"):
            self._from = len(self._ids) - 4
            self._window = self._decoded()
        return new

    def _decoded(self) -> str:
        return str(self._tokenizer.decode(self._ids[self._from :], skip_special_tokens=True))

    def _settle(self, new: str, last: bool) -> str:
        text = self._held + new
        cuts = [position for stop in self._stop if (position := text.find(stop)) >= 0]
        if cuts:
            self.stopped = True
            self._held = ""
            return self._trimmed(text[: min(cuts)])
        if last:
            self._held = ""
            return self._trimmed(text)
        keep = len(self._trimmed(text))
        for stop in self._stop:
            for length in range(min(len(stop) - 1, len(text)), 0, -1):
                if text.endswith(stop[:length]):
                    keep = min(keep, len(self._trimmed(text[: len(text) - length])))
                    break
        self._held = text[keep:]
        return text[:keep]

    def _trimmed(self, text: str) -> str:
        return text.rstrip() if self._trim else text
