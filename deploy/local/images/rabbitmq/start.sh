#!/bin/sh
# Become the server once no other pod has the volume: a pod that is deleted by force still runs for a while.
set -eu
exec 9>/var/lib/rabbitmq/.volume.lock
flock 9
exec /usr/lib/rabbitmq/bin/rabbitmq-server
