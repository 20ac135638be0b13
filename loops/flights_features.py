"""What is known beside a flight: weather, and how punctual its carrier and airport have been. Ordinary Feast.

A source is a table of the loop; its rows count from the moment at which they were known.
"""

from datetime import timedelta

from feast import Entity, FeatureView, Field, ValueType
from feast.types import Float64, Int64
from treadle.features import snapshot_source

origin = Entity(name="origin", value_type=ValueType.STRING, description="The airport of departure")
carrier = Entity(name="carrier", value_type=ValueType.STRING, description="The airline's two letters")

PUNCTUALITY = [
    Field(name="departures_3h", dtype=Int64),
    Field(name="dep_delay_3h", dtype=Float64),
    Field(name="dep_delay_24h", dtype=Float64),
    Field(name="late_share_3h", dtype=Float64),
    Field(name="late_share_24h", dtype=Float64),
    Field(name="arr_delay_24h", dtype=Float64),
]

weather = FeatureView(
    name="weather",
    entities=[origin],
    ttl=timedelta(hours=6),
    schema=[
        Field(name="temp", dtype=Float64),
        Field(name="dewp", dtype=Float64),
        Field(name="humid", dtype=Float64),
        Field(name="wind_speed", dtype=Float64),
        Field(name="wind_gust", dtype=Float64),
        Field(name="precip", dtype=Float64),
        Field(name="pressure", dtype=Float64),
        Field(name="visib", dtype=Float64),
    ],
    source=snapshot_source("weather"),
)

# Each hour has a row for as long as the last flight lies within a day, so an older one would say nothing.
delays = FeatureView(
    name="delays",
    entities=[carrier],
    ttl=timedelta(hours=2),
    schema=PUNCTUALITY,
    source=snapshot_source("delays"),
)

airport = FeatureView(
    name="airport",
    entities=[origin],
    ttl=timedelta(hours=2),
    schema=PUNCTUALITY,
    source=snapshot_source("airport"),
)
