/* Text to token ids and back: characters and byte-level BPE, as in tokenizer.py. */

const REPLACEMENT = "\ufffd"; // for bytes that are not a character, and for unknown characters

/** One token per character: 0 is unknown, 1 begins a document, then the characters in the vocabulary's order. */
class CharTokenizer {
  constructor(plain) {
    Object.assign(this, plain);
    this.tokens = [REPLACEMENT, "", ...plain.characters];
    if (this.endId && !this.characters.includes("\n")) this.tokens[this.endId] = "\n"; // it stands between documents
    this.idOf = new Map(this.tokens.map((character, id) => [character, id]));
    this.idOf.delete("");
  }

  encode(text) {
    return Array.from(text, (character) => this.idOf.get(character) ?? 0);
  }

  decode(ids) {
    return ids.map((id) => this.tokens[id]).join("");
  }

  /** A function that takes the ids of a text one by one, and returns what each adds to it. */
  stream() {
    return (id) => this.tokens[id];
  }

  unknown(text) {
    return [...new Set(Array.from(text).filter((character) => !this.idOf.get(character)))];
  }
}

/** GPT-2's way to write any byte as one visible character: an array of 256. */
function byteSymbols() {
  const visible = (byte) => (byte >= 33 && byte < 127) || (byte >= 161 && byte < 256 && byte !== 173);
  let hidden = 256;
  return Array.from({ length: 256 }, (_, byte) => String.fromCodePoint(visible(byte) ? byte : hidden++));
}

// BPE takes a time that grows with the square of a word's length, and a text may be one word.
const LONG_WORD = /(\P{White_Space}{256}|\p{White_Space}{256})/u;
// GPT-2's words: no merge goes beyond one. \p{White_Space}, because \s differs between languages by a few characters.
const WORD = new RegExp(
  String.raw`'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\p{White_Space}\p{L}\p{N}]+` +
  String.raw`|\p{White_Space}+(?!\P{White_Space})|\p{White_Space}+`, "gu");

/** Pairs of UTF-8 bytes merged into tokens, the earliest learned pair first (Sennrich et al. 2016). */
class BPETokenizer {
  constructor(plain) {
    Object.assign(this, plain);
    this.symbols = byteSymbols();
    this.byteOf = new Map(this.symbols.map((symbol, byte) => [symbol, byte]));
    this.idOf = new Map(plain.tokens.map((token, id) => [token, id]));
    this.rank = new Map(plain.merges.map(([left, right], rank) => [`${left} ${right}`, rank]));
  }

  encode(text) {
    const whole = text.replace(/[\ud800-\udfff]/gu, REPLACEMENT); // half a surrogate pair is not a character
    return whole.split(LONG_WORD).flatMap((piece) => piece.match(WORD) ?? []).flatMap((word) => this.merge(word));
  }

  merge(word) {
    const parts = Array.from(new TextEncoder().encode(word), (byte) => this.symbols[byte]);
    for (;;) {
      let best = -1, bestRank = Infinity;
      for (let i = 0; i + 1 < parts.length; i++) {
        const rank = this.rank.get(`${parts[i]} ${parts[i + 1]}`) ?? Infinity;
        if (rank < bestRank) [best, bestRank] = [i, rank];
      }
      if (best < 0) return parts.map((part) => this.idOf.get(part));
      parts.splice(best, 2, parts[best] + parts[best + 1]);
    }
  }

  decode(ids) {
    return new TextDecoder("utf-8", { ignoreBOM: true }).decode(Uint8Array.from(ids.flatMap((id) => this.bytes(id))));
  }

  /** The same as of characters; a character appears with its last byte. */
  stream() {
    const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
    return (id) => decoder.decode(Uint8Array.from(this.bytes(id)), { stream: true });
  }

  bytes(id) {
    return this.specialIds.includes(id) ? [] : Array.from(this.tokens[id], (symbol) => this.byteOf.get(symbol));
  }
}

/** The tokenizer that page_data of formats/write_page.py described. */
const makeTokenizer = (plain) => (plain.kind === "bpe" ? new BPETokenizer(plain) : new CharTokenizer(plain));

/** The ids that are never sampled: all special ones, unless one ends the text. */
const suppressedIds = ({ specialIds, endId }) => specialIds.filter((id) => id !== endId);

// Characters that show nothing, or turn the direction of what follows; not those that join or vary their neighbours.
const INVISIBLE = /(?![\u200c\u200d\ufe00-\ufe0f])[\p{Cc}\p{Cn}\p{Co}\p{DI}\u2028\u2029]/gu;

/** A text in which what cannot be seen is written as its number, except white space. */
function escapeInvisible(text) {
  const number = (character) => `U+${character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}`;
  return text.replace(INVISIBLE, (character) => ("\n\t".includes(character) ? character : number(character)));
}

/** How a token is written in a table: white space visible, bytes that are no whole character as numbers. */
function showToken(tokenizer, id) {
  const text = tokenizer.decode([id]);
  if (tokenizer.specialIds.includes(id)) return id === tokenizer.startId ? "(start)" : text ? "(unknown)" : "(special)";
  if (tokenizer.bytes && text.includes(REPLACEMENT)) {
    return tokenizer.bytes(id).map((byte) => `x${byte.toString(16).toUpperCase()}`).join(" ");
  }
  const space = { " ": "␣", "\n": "⏎", "\t": "⇥" };
  return escapeInvisible(text.replace(/\r/g, "␍")).replace(/[ \n\t]/g, (c) => space[c]).replace(/^\p{M}/u, "◌$&");
}
