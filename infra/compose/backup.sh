#!/bin/sh
# Saves what the stack in docker compose cannot make again: the databases, the bucket, recipes, data, the logs of tasks,
# the audit log, the digests of clients' keys, and the public keys whose signatures are trusted. Not the gateway's access
# log, the figures of Prometheus and the users of Grafana.
#
#   infra/compose/backup.sh FOLDER      while the stack runs; quiet hours give a backup of one moment
#
# Keep secrets/ and .env as well, in another place: they are not in the folder.
set -eu
folder=${1:?the folder to make}
[ ! -e "$folder" ] || { echo "$folder is there already: name a new folder" >&2; exit 65; }
umask 077
whole=$folder
folder=$folder.partial
rm -rf "$folder"
mkdir -p "$folder"
for database in airflow mlflow mlflow_auth; do
    docker compose exec -T postgres pg_dump -U slipway --format=custom "$database" >"$folder/$database.dump"
done
docker compose run --rm -T --no-deps --entrypoint python cli \
    -m pipeline.stack.in_compose run python -m pipeline.stack.bucket_backup save >"$folder/bucket.tar"
# tar ends with 1 when a file grew while it was read, as a log may. By name: audit/head.json before the log, which then
# holds at least as much as the head says.
docker compose run --rm -T --no-deps --entrypoint sh cli -c \
    'cd /var/lib/slipway; clients=fleet/doors/keys.json; [ -e $clients ] || clients=
    tar --sort=name -cf - recipes data logs/airflow signing audit $clients || [ $? -eq 1 ]' >"$folder/home.tar"
mv "$folder" "$whole"
ls -l "$whole"
