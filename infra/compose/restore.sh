#!/bin/sh
# Puts back what backup.sh saved, into a stack that runs or an empty one: databases are replaced, objects of the bucket
# are added. Then the fleet follows the champions of the databases by itself.
#
#   infra/compose/restore.sh FOLDER
#
# The secrets have to be those of the saved stack, or Airflow cannot read what it encrypted.
set -eu
folder=${1:?the folder that backup.sh made}
for name in airflow.dump mlflow.dump mlflow_auth.dump bucket.tar home.tar; do
    [ -s "$folder/$name" ] || { echo "there is no $folder/$name: is $folder a folder of backup.sh?" >&2; exit 65; }
done
docker compose up --detach --wait postgres s3
docker compose up setup
docker compose stop mlflow airflow-api-server airflow-scheduler airflow-dag-processor airflow-triggerer jobs
for database in airflow mlflow mlflow_auth; do
    docker compose exec -T postgres dropdb -U slipway --force "$database"
    docker compose exec -T postgres createdb -U slipway --owner "${database%_auth}" "$database"
    docker compose exec -T postgres pg_restore -U slipway --exit-on-error --dbname "$database" <"$folder/$database.dump"
done
# What is served is not what was: without this alias every champion counts as waiting for a rollout, which does nothing
# where the version's replicas are well.
docker compose exec -T postgres psql --quiet -U slipway -d mlflow \
    -c "DELETE FROM registered_model_aliases WHERE alias = 'serving'"
docker compose run --rm -T --no-deps --entrypoint python cli \
    -m pipeline.stack.in_compose run python -m pipeline.stack.bucket_backup load <"$folder/bucket.tar"
# An audit log that is here already stays: it goes on, and putting back an older one would cut it off. So do the keys of
# clients that are here: among older ones there may be some that were revoked since.
docker compose run --rm -T --no-deps --entrypoint sh cli -c \
    'cd /var/lib/slipway; [ -s audit/log.jsonl ] && keep=--exclude=audit || keep=
    [ -s fleet/doors/keys.json ] && keep="$keep --exclude=fleet/doors/keys.json"; exec tar $keep -xf -' <"$folder/home.tar"
docker compose up --detach --wait
# A key that was distrusted in this home stays so. A new home knows of none that was distrusted after the backup.
echo "Bundles count that were signed by the keys below. Was one of them distrusted since the backup?" \
    "docker compose run --rm cli signing distrust KEY"
docker compose run --rm -T --no-deps cli signing show
