#!/bin/sh
# cat of a simulated host: /etc/hccn.conf is the host's own, everything else is real.
PATH=${PATH#*:} # without the directory of this wrapper, so that names are the real ones
case " $* " in
    *" /etc/hccn.conf "*) ;;
    *) exec cat "$@" ;;
esac
own="$TWIN_STATE/$TWIN_HOST"
for argument; do
    shift
    case $argument in
        /etc/hccn.conf) set -- "$@" "$own$argument" ;;
        *) set -- "$@" "$argument" ;;
    esac
done
exec 3>&1
errors=$(cat "$@" 2>&1 >&3)
code=$?
[ -z "$errors" ] || printf '%s\n' "$errors" | sed "s|$own||g" >&2
exit $code
