#!/bin/sh
# kcat: metadata, produce, consume.
set -eu
address=$1
seq 1 1000 | kcat -P -b "$address" -t kcat -z zstd
[ "$(kcat -C -b "$address" -t kcat -o beginning -e -q | md5sum)" = "$(seq 1 1000 | md5sum)" ]
kcat -L -b "$address" | grep -q 'topic "kcat" with 1 partitions'
[ "$(kcat -Q -b "$address" -t kcat:0:-1)" = "kcat [0] offset 1000" ]
echo OK
