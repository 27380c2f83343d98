#!/bin/sh
# cat of a simulated host: /etc/hccn.conf is the host's own, everything else is real.
case " $* " in
    *" /etc/hccn.conf "*) ;;
    *) exec /bin/cat "$@" ;;
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
errors=$(/bin/cat "$@" 2>&1 >&3)
code=$?
[ -z "$errors" ] || printf '%s\n' "$errors" | sed "s|$own||g; s|^/bin/||" >&2
exit $code
