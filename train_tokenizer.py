"""Learn a byte-level BPE tokenizer from a corpus, or look at its merges and at the tokens of a text.

python train_tokenizer.py --data corpus.txt --vocab-size 1024 --out tokenizer.json
python train_tokenizer.py --show "some text" --tokenizer tokenizer.json
python train_tokenizer.py --merges 20 --tokenizer tokenizer.json
"""

import support.start  # noqa: F401  first: Ctrl-C during the imports is one line

import argparse
from pathlib import Path

from tqdm import tqdm

from corpora.fast_bpe import bpe_class
from corpora.tokenizer_files import bpe_to_json, load_bpe
from data_setup import load_corpus
from recipe import add_corpus_flags
from support.command import Parser, UserError, flag_of, given_flags, path_name, run, visible, whole
from support.durable import check_overwrite, write_atomically
from tokenizer import MIN_VOCAB_SIZE, BPETokenizer, cut_between_words


def build_parser() -> argparse.ArgumentParser:
    """Every flag."""
    parser = Parser(__doc__)
    add_corpus_flags(parser)  # its training part is read
    learn = parser.add_argument_group("learn")
    size = "how many tokens, the 256 bytes and <bos> included"
    learn.add_argument("--vocab-size", type=whole(MIN_VOCAB_SIZE, 2**17), default=1024, help=size)
    learn.add_argument("--out", type=path_name, default="tokenizer.json", help="the file to write")
    learn.add_argument("--force", action="store_true", help="overwrite --out whatever it is")
    look = parser.add_argument_group("look")
    look.add_argument("--show", metavar="TEXT", help="print the tokens of this text and their ids; learn nothing")
    look.add_argument("--merges", type=whole(1, 2**17), help="print the first merges that were learned; learn nothing")
    look.add_argument("--tokenizer", type=path_name, default="tokenizer.json", help="the file")
    return parser


def learn(args: argparse.Namespace) -> None:
    """Learn a byte-level BPE and write it to a file."""
    # a file that holds what this command would write for its vocabulary is an earlier output of it
    check_overwrite(Path(args.out), lambda path: path.read_text("utf-8") == bpe_to_json(load_bpe(path)), args.force)
    corpus = load_corpus(args.data, documents=args.documents, glob=args.glob)
    # no word reaches from one document into the next
    pieces = (piece for document in corpus.train.spans for piece in cut_between_words(document.blocks()))
    pieces = tqdm(pieces, desc="reading", unit=" pieces", disable=None, leave=False)
    tokenizer = bpe_class(len(corpus.train)).train(pieces, args.vocab_size)
    tokens = sum(len(ids) for document in corpus.val.spans for ids in tokenizer.encode_blocks(document.blocks()))
    write_atomically(Path(args.out), lambda file: file.write(bpe_to_json(tokenizer).encode()))
    print(f"{args.out}: {tokenizer.vocab_size} tokens, learned from the training part of {corpus.name}")
    print(f"{len(corpus.val) / tokens:.2f} characters per token on the validation part")


def show_token(tokenizer: BPETokenizer, token_id: int) -> str:
    """A token as text, with a sign for each space, and bytes that are not a whole character as numbers."""
    piece = tokenizer.decode_bytes([token_id]).decode("utf-8", "backslashreplace")
    return visible(piece.replace(" ", "\N{OPEN BOX}").replace("\n", "\\n").replace("\t", "\\t"))


def show_merges(tokenizer: BPETokenizer, count: int) -> None:
    """Print the first merges in the order in which they were learned: the two tokens, and the one that they make."""
    id_of = {token: number for number, token in enumerate(tokenizer.tokens)}
    for left, right in tokenizer.merges[:count]:
        old, new = [show_token(tokenizer, id_of[token]) for token in (left, right)], id_of[left + right]
        print(f"{' + '.join(old)} = {show_token(tokenizer, new)}({new})")


def main() -> None:
    """Learn or look."""
    parser = build_parser()
    args = parser.parse_args()
    looking = args.show is not None or args.merges is not None
    for name in given_flags(parser, None):
        if (name in ("show", "merges", "tokenizer")) != looking:
            which = "beside --show and --merges" if looking else "without --show or --merges"
            raise UserError(f"{flag_of(name)} does nothing {which}: leave it out")
    if not looking:
        learn(args)
        return
    tokenizer = load_bpe(Path(args.tokenizer))
    if args.merges is not None:
        show_merges(tokenizer, args.merges)
    if args.show is not None:
        print(*(f"{show_token(tokenizer, token_id)}({token_id})" for token_id in tokenizer.encode(args.show)))


if __name__ == "__main__":
    run(main)
