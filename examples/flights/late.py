import json
import logging


def handler(event, context):
    flights = [record["data"] for record in json.loads(event)]
    worst = max(flights, key=lambda flight: flight["delay"])
    logging.info(
        "%d late flights, the worst %s-%s with %d minutes",
        len(flights), worst["origin"], worst["destination"], worst["delay"],
    )
    return len(flights)
