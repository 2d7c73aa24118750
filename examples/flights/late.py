import json
import logging

BELIEVABLE = 6 * 60  # minutes


def handler(event, context):
    """Takes late flights, and refuses those whose delay nobody believes: they alone are tried again."""
    records = json.loads(event)
    late = [record["data"] for record in records if record["data"]["delay"] <= BELIEVABLE]
    if late:
        worst = max(late, key=lambda flight: flight["delay"])
        route = f"{worst['origin']}-{worst['destination']}"
        logging.info("%d late flights, the worst %s with %d minutes", len(late), route, worst["delay"])
    refused = [record for record in records if record["data"]["delay"] > BELIEVABLE]
    for record in refused:
        logging.warning("refused, attempt %d: %d minutes late", context.attempt, record["data"]["delay"])
    return {"batchItemFailures": [{"itemIdentifier": record["id"]} for record in refused]}
