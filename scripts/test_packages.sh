#!/usr/bin/env bash
# Make sure that the tests of the chat page find a Chromium. On Debian and Ubuntu it is installed; elsewhere, and
# where that fails, those tests are skipped and say why.
set -euo pipefail

command -v chromium >/dev/null || command -v chromium-browser >/dev/null && exit 0
if command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
    apt-get update -qq || true
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium >/dev/null || true
fi
command -v chromium >/dev/null || command -v chromium-browser >/dev/null ||
    echo "note: without Chromium the tests of the chat page are skipped." >&2
