#!/bin/sh
# Starts PostgreSQL as the official image does: reads POSTGRES_USER, POSTGRES_PASSWORD_FILE and POSTGRES_INITDB_ARGS,
# makes the cluster at the first start, and becomes the command.
set -eu
if [ ! -s "$PGDATA/PG_VERSION" ]; then
    # shellcheck disable=SC2086  # the arguments are several words
    initdb --pgdata "$PGDATA" --username "$POSTGRES_USER" --pwfile "$POSTGRES_PASSWORD_FILE" --auth-local=trust \
        $POSTGRES_INITDB_ARGS
    printf '\nhost all all all scram-sha-256\n' >>"$PGDATA/pg_hba.conf"
fi
exec "$@" -c "listen_addresses=*"
