#!/bin/sh
# ls of a simulated host: /dev/davinci* and /etc/hccn.conf are the host's own, the rest is real.
PATH=${PATH#*:} # without the directory of this wrapper, so that names are the real ones
case " $*" in
    *" /dev/davinci"* | *" /etc/hccn.conf"*) ;;
    *) exec ls "$@" ;;
esac
own="$TWIN_STATE/$TWIN_HOST"
IFS= # patterns expand below, spaces do not split
for argument; do
    shift
    case $argument in
        # The caller's shell found no such device, so a pattern arrives here as it was written.
        /dev/davinci*) set -- "$@" $own$argument ;;
        /etc/hccn.conf) set -- "$@" "$own$argument" ;;
        *) set -- "$@" "$argument" ;;
    esac
done
ls "$@" 2>&1 >/dev/null | sed "s|$own||g" >&2
listing=$(ls "$@" 2>/dev/null)
code=$?
[ -z "$listing" ] || printf '%s\n' "$listing" | sed "s|$own||g"
exit $code
