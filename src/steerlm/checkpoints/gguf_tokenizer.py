"""A Hugging Face tokenizer in the terms of a GGUF file, so that other programs make the same tokens of a text."""

from __future__ import annotations

import json
from typing import Any

from gguf import TokenType

from steerlm.dialects import Renderer
from steerlm.errors import ModelError

_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
# How text is split before merges, by the regular expression that a tokenizer splits with: llama.cpp's name of it where
# whole words of the vocabulary are taken unmerged (`ignore_merges`), and where not.
_SPLITS = {
    rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}{{1,3}}|{_REST}": ("llama-bpe", "smaug-bpe"),
    rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}|{_REST}": (None, "qwen2"),
}
_SPACE = "\u2581"


def add_tokenizer(writer: Any, renderer: Renderer, system: str, rows: int) -> tuple[str, ...]:
    """Write vocabulary, merges, special tokens and chat template. `rows` is the number of embeddings.

    Returns warnings: what other programs may tokenise otherwise. Raises `ModelError` where the tokenizer is of a kind
    that the format does not know.
    """
    tokenizer = renderer.tokenizer
    form = json.loads(tokenizer.backend_tokenizer.to_str())
    model = form["model"]
    if model["type"] != "BPE":
        raise ModelError(f"a tokenizer of the kind {model['type']} cannot be written to a GGUF file, only BPE")
    vocabulary = tokenizer.get_vocab()
    if len(vocabulary) > rows or max(vocabulary.values()) >= rows:
        raise ModelError(f"the tokenizer has {len(vocabulary)} tokens, but the model embeddings of {rows}")
    warnings: list[str] = []
    if model.get("byte_fallback"):
        _add_sentencepiece(writer, renderer, form, rows, warnings)
    else:
        _add_byte_level(writer, renderer, form, rows, warnings)
    _add_special(writer, renderer)
    writer.add_chat_template(renderer.chat_template("policy", system))
    return tuple(warnings)


def _add_byte_level(writer: Any, renderer: Renderer, form: dict[str, Any], rows: int, warnings: list[str]) -> None:
    model = form["model"]
    split = _split(form["pre_tokenizer"], bool(model.get("ignore_merges")))
    if split is None:
        warnings.append("no name is known for how this tokenizer splits text; other programs may make other tokens")
    if form.get("normalizer") not in (None, {"type": "NFC"}):
        warnings.append("this tokenizer normalises text, which other programs will not do")
    tokens, types = _tokens(renderer, rows, {})
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split or "default")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([" ".join(merge) for merge in model["merges"]])


def _split(pre_tokenizer: dict[str, Any] | None, ignore_merges: bool) -> str | None:
    """llama.cpp's name of a way of splitting text, by what Hugging Face's tokenizer file says of it."""
    steps = (pre_tokenizer or {}).get("pretokenizers", [pre_tokenizer or {}])
    kinds = [step.get("type") for step in steps]
    last = steps[-1]
    if last.get("type") != "ByteLevel" or last.get("add_prefix_space"):
        return None
    if kinds == ["ByteLevel"] and last["use_regex"]:
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and steps[0]["individual_digits"] and last["use_regex"]:
        return "smollm"
    if kinds == ["Split", "ByteLevel"] and not last["use_regex"] and steps[0]["behavior"] == "Isolated":
        whole, merged = _SPLITS.get(steps[0]["pattern"].get("Regex"), (None, None))
        return whole if ignore_merges else merged
    return None


def _add_sentencepiece(writer: Any, renderer: Renderer, form: dict[str, Any], rows: int, warnings: list[str]) -> None:
    model = form["model"]
    vocabulary: dict[str, int] = model["vocab"]
    types = {f"<0x{byte:02X}>": TokenType.BYTE for byte in range(256)}
    if unknown := model.get("unk_token") or renderer.tokenizer.unk_token:
        types[str(unknown)] = TokenType.UNKNOWN
    # llama.cpp joins the neighbours whose union has the highest score: what is merged first here.
    scores = [0.0] * rows
    merges = [tuple(merge) for merge in model["merges"]]
    for rank, (left, right) in reversed(list(enumerate(merges))):
        scores[vocabulary[left + right]] = -float(rank)
    tokens, found = _tokens(renderer, rows, types)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(found)
    writer.add_token_merges([" ".join(merge) for merge in merges])  # llama.cpp needs none; transformers, OpenVINO do
    writer.add_add_space_prefix(_space_follows_special(renderer))
    added = renderer.tokenizer.added_tokens_encoder
    pieces = {piece for piece in vocabulary if piece not in types and piece not in added}
    joins = {
        (piece[:cut], piece[cut:])
        for piece in pieces
        for cut in range(1, len(piece))
        if piece[:cut] in pieces and piece[cut:] in pieces
    }
    if joins != {merge for merge in merges if "".join(merge) in pieces}:
        warnings.append("this tokenizer joins only some of the pieces that other programs join: tokens may differ")


def _space_follows_special(renderer: Renderer) -> bool:
    """Whether text after a special token gets SentencePiece's dummy space; where a prompt begins with text, as ever."""
    marker = renderer.dialect.start or renderer.dialect.system_open
    marker = next((name for name in renderer.dialect.markers if marker.startswith(name)), "")
    tokenizer = renderer.tokenizer
    if marker not in tokenizer.added_tokens_encoder:
        return True
    tokens = tokenizer.convert_ids_to_tokens(tokenizer(f"{marker}a", add_special_tokens=False)["input_ids"])
    return str(tokens[1]).startswith(_SPACE)


def _tokens(renderer: Renderer, rows: int, known: dict[str, TokenType]) -> tuple[list[str], list[TokenType]]:
    """The text and the kind of every token, in order of ids; rows without a token get a name that no text has."""
    added = renderer.tokenizer.added_tokens_decoder
    texts = {index: text for text, index in renderer.tokenizer.get_vocab().items()}
    tokens, types = [], []
    for index in range(rows):
        text = texts.get(index)
        if text is None:
            tokens.append(f"[PAD{index}]")
            types.append(TokenType.UNUSED)
            continue
        kind = known.get(text, TokenType.NORMAL)
        if index in added and kind == TokenType.NORMAL:
            kind = TokenType.CONTROL if added[index].special else TokenType.USER_DEFINED
        tokens.append(text)
        types.append(kind)
    return tokens, types


def _add_special(writer: Any, renderer: Renderer) -> None:
    """Ends: the policy's own first, and what ended text for its base model. A beginning is in the chat template."""
    tokenizer = renderer.tokenizer
    ends = [*(renderer.end_ids if renderer.end_is_token else ()), tokenizer.eos_token_id]
    ends = list(dict.fromkeys(end for end in ends if end is not None))
    for add, token in (
        (writer.add_eos_token_id, ends[0] if ends else None),
        (writer.add_eot_token_id, ends[1] if len(ends) > 1 else None),
        (writer.add_bos_token_id, tokenizer.bos_token_id),
        (writer.add_unk_token_id, tokenizer.unk_token_id),
        (writer.add_pad_token_id, tokenizer.pad_token_id),
    ):
        if token is not None:
            add(token)
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
