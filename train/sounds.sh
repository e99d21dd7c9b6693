#!/usr/bin/env bash
# Some 8,500 free sounds for mixtures that nobody labels: voices in forty languages, music, engines, tools, animals, effects, from
# packages of Debian 12 (their licences: <package>/usr/share/doc/<package>/copyright). Nothing is installed.
#   train/sounds.sh FOLDER     needs Debian 12, 3 GB to download, 2 GB on the disk; goes on where it was interrupted;
#                              PACKAGES="…" takes others
set -euo pipefail
out=$(realpath -m "$1")
packages="${PACKAGES:-7kaa-data asc-music asterisk-core-sounds-it-wav boswars-data btanks-data budgie-control-center-data caveexpress-data
  colobot-common-sounds cube2-data drascula-music emscripten endless-sky-data etw-data extremetuxracer-data festvox-ru
  fillets-ng-data fillets-ng-data-cs fillets-ng-data-nl flare-game foobillardplus-data freedroidrpg-data gcompris-qt-data
  gl-117-data hedgewars-data hydrogen-drumkits-effects hyperrogue-music klettres-data ktuberling-data lincity-ng-data lmms-common
  lomiri-sounds lugaru-data mate-media-common megaglest-data micropolis-data mu-cade-data netpanzer-data neverball-data
  openarena-data openttd-opensfx overgod-data pidgin-data pingus-data planetblupi-common scorched3d-data scratch
  searchandrescue-data simutrans-pak64 sonic-pi-samples sound-theme-freedesktop supertux-data tecnoballz-data teeworlds-data
  torcs-data trigger-rally-data triplea tuxfootball tuxpaint-stamps-default warmux-data warzone2100-data wesnoth-1.16-data
  wesnoth-1.16-music widelands-data}"
for package in $packages; do
  [ -d "$out/$package" ] && continue
  work=$(mktemp -d)
  (cd "$work" && apt-get download -qq "$package")
  mkdir -p "$work/$package"
  for pattern in '*.ogg' '*.wav' '*.flac' '*.mp3' '*/copyright'; do  # tar fails where a pattern finds nothing
    dpkg-deb --fsys-tarfile "$work"/*.deb | tar -x -C "$work/$package" --wildcards "$pattern" 2>/dev/null || true
  done
  mkdir -p "$out"
  mv "$work/$package" "$out/"
  rm -rf "$work"
done
