#!/bin/sh
# Install a Debian package where this user may; else say in one sentence what to do.
set -eu
package=$1
hint="$package is missing: install it (apt-get install $package)"
[ "$package" = rabbitmq-server ] && hint="$hint, or set AMQP_URL to a running broker"
if ! command -v apt-get >/dev/null; then
  echo "$hint." >&2
  exit 1
fi
as_root=
if [ "$(id -u)" != 0 ]; then
  if ! sudo -n true 2>/dev/null; then
    echo "$hint." >&2
    exit 1
  fi
  as_root="sudo -n"
fi
echo "Installing $package"
# RUNLEVEL=1 keeps Debian from starting a system-wide service: a private one is started instead.
$as_root env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 sh -ec "
  apt-get update -qq
  apt-get install -y -qq --no-install-recommends $package >/dev/null
" || { echo "$hint." >&2; exit 1; }
