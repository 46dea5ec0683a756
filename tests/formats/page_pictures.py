"""The pictures of docs/images: a page, made by convert.py, photographed in Chromium.

python tests/formats/page_pictures.py checkpoints/tiny_decoder.html
"""

import argparse
import shutil
from pathlib import Path

from playwright.sync_api import sync_playwright

# file name: (width, height, colours, what to photograph: a section, or None for what is seen first)
PICTURES = {
    "page-write.png": (1280, 860, "light", None),
    "page-look.png": (1280, 860, "light", "#look"),
    "page-learn.png": (1280, 860, "light", "#learn"),
    "page-phone.png": (390, 844, "dark", None),
}


def main() -> None:
    """Take all pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", type=Path, help="a page from convert.py")
    parser.add_argument("--out", type=Path, default=Path("docs/images"), help="folder for the pictures")
    settings = parser.parse_args()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for name, (width, height, colours, section) in PICTURES.items():
            page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=colours)
            page.goto(settings.page.resolve().as_uri())
            page.wait_for_selector("#lens table")  # the text is written and looked at
            if section:
                page.locator(section).evaluate("element => element.scrollIntoView({behavior: 'instant'})")
            page.screenshot(path=settings.out / name)
            page.close()


if __name__ == "__main__":
    main()
