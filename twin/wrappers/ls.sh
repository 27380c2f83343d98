#!/bin/sh
# ls of a simulated host: /dev/davinci* and /etc/hccn.conf are the host's own, the rest is real.
case " $*" in
    *" /dev/davinci"* | *" /etc/hccn.conf"*) ;;
    *) exec /bin/ls "$@" ;;
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
/bin/ls "$@" 2>&1 >/dev/null | sed "s|$own||g; s|^/bin/||" >&2
listing=$(/bin/ls "$@" 2>/dev/null)
code=$?
[ -z "$listing" ] || printf '%s\n' "$listing" | sed "s|$own||g"
exit $code
