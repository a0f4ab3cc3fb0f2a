#!/bin/sh
# Makes what stands on standard input the password of PostgreSQL's superuser. It is never on a command line.
set -eu
new_password=$(cat)
export new_password
psql --quiet --set ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname postgres <<'SQL'
\set new `printenv new_password`
ALTER ROLE CURRENT_USER PASSWORD :'new';
SQL
