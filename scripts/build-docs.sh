#!/usr/bin/env bash
# Builds the book of docs/ with mdBook.
#
#   scripts/build-docs.sh            into target/book
#   scripts/build-docs.sh --install  installs mdBook first if it is missing (cargo, 1 to 5 minutes)
#
# Links to files outside of docs/ lead to the repository that KITFS_REPOSITORY_URL names, such as
# https://github.com/OWNER/kitfs/blob/main. Without it, they become text.
set -euo pipefail

cd "$(dirname "$0")/.."
. scripts/common.sh

# Later versions may write other HTML; this one was tried.
MDBOOK_VERSION=0.5.4

if ! command -v mdbook >/dev/null; then
    if [ "${1:-}" != --install ]; then
        fail "mdbook is missing: run scripts/build-docs.sh --install, or cargo install mdbook"
    fi
    # Without default features: no server and no watcher, which take a part of the build.
    cargo install --locked --no-default-features --features search "mdbook@$MDBOOK_VERSION"
fi

target=$(target_folder)
source=$target/book-source
rm -rf "$source"
mkdir -p "$source"
cp -r docs/. "$source"

# A link that leaves docs/ has `../` before the folder or file, once more for each folder that the page is in.
outside='\[([^][]*)\]\((\.\./)+(examples|src|scripts|tests|fuzz|packaging|deploy|python|[A-Z]+\.md|\.ci)([^)]*)\)'
if [ -n "${KITFS_REPOSITORY_URL:-}" ]; then
    replacement="[\\1]($KITFS_REPOSITORY_URL/\\3\\4)"
else
    replacement='\1 (`\3\4` in the repository)'
fi
find "$source" -name '*.md' -exec sed -i -E "s#$outside#$replacement#g" {} +

mdbook build "$source" --dest-dir "$target/book"
say "the book: $target/book/index.html"
