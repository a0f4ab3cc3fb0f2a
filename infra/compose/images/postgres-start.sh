#!/bin/sh
# Starts PostgreSQL as the official image does: reads POSTGRES_USER, POSTGRES_PASSWORD_FILE and POSTGRES_INITDB_ARGS,
# makes the cluster at the first start, and becomes the command.
set -eu
cluster=$PGDATA/cluster
if [ ! -d "$cluster" ]; then
    # Under another name until it is whole: the container may be killed meanwhile.
    rm -rf "$cluster.new"
    # shellcheck disable=SC2086  # the arguments are several words
    initdb --pgdata "$cluster.new" --username "$POSTGRES_USER" --pwfile "$POSTGRES_PASSWORD_FILE" --auth-local=trust \
        $POSTGRES_INITDB_ARGS
    printf '\nhost all all all scram-sha-256\n' >>"$cluster.new/pg_hba.conf"
    mv "$cluster.new" "$cluster"
fi
PGDATA=$cluster
export PGDATA
exec "$@" -c "listen_addresses=*"
