-- How punctual each carrier has been lately, at every full hour, by what had become known before that hour: a departure's
-- delay when the flight leaves, an arrival's when it is called arrived (see flights.sql). Without any departure or
-- arrival in the stretch a value is null; the row is there for as long as the last flight lies within 24 hours.
--
-- Minutes are summed as whole numbers and divided last, so that the order of the rows can't change a digit.
WITH departed AS (
  SELECT *, time_hour + to_minutes(minute) + to_minutes(dep_delay) AS departed_at FROM flights WHERE dep_delay IS NOT NULL
),
events AS (
  SELECT carrier, departed_at AS event_at, 1 AS departures, dep_delay, 0 AS arrivals, 0 AS arr_delay, 0 AS late FROM departed
  UNION ALL
  SELECT carrier, departed_at + to_minutes(air_time) + INTERVAL 4 HOURS, 0, 0, 1, arr_delay, (arr_delay >= 15)::INTEGER
  FROM departed WHERE arr_delay IS NOT NULL
),
hours AS (
  -- What happened before 10:00 and not before 9:00 belongs to 10:00.
  SELECT carrier, date_trunc('hour', event_at) + INTERVAL 1 HOUR AS known_at, sum(departures) AS departures,
    sum(dep_delay) AS dep_delay, sum(arrivals) AS arrivals, sum(arr_delay) AS arr_delay, sum(late) AS late
  FROM events GROUP BY ALL
),
following AS (
  SELECT carrier, known_at, lead(known_at) OVER (PARTITION BY carrier ORDER BY known_at) AS next_at FROM hours
),
-- A row an hour for 24 hours after each event. The next event only keeps a row from being made twice.
grid AS (
  SELECT carrier, unnest(generate_series(known_at,
    least(known_at + INTERVAL 24 HOURS, coalesce(next_at - INTERVAL 1 HOUR, known_at + INTERVAL 24 HOURS)),
    INTERVAL 1 HOUR)) AS known_at
  FROM following
),
sums AS (
  SELECT carrier, known_at,
    sum(departures) OVER three AS departures_3h, sum(dep_delay) OVER three AS dep_delay_3h,
    sum(departures) OVER day AS departures_24h, sum(dep_delay) OVER day AS dep_delay_24h,
    sum(arrivals) OVER three AS arrivals_3h, sum(late) OVER three AS late_3h,
    sum(arrivals) OVER day AS arrivals_24h, sum(late) OVER day AS late_24h, sum(arr_delay) OVER day AS arr_delay_24h
  FROM grid LEFT JOIN hours USING (carrier, known_at)
  WINDOW
    three AS (PARTITION BY carrier ORDER BY known_at RANGE BETWEEN INTERVAL 2 HOURS PRECEDING AND CURRENT ROW),
    day AS (PARTITION BY carrier ORDER BY known_at RANGE BETWEEN INTERVAL 23 HOURS PRECEDING AND CURRENT ROW)
)
SELECT
  carrier,
  known_at,
  coalesce(departures_3h, 0)::BIGINT AS departures_3h,
  dep_delay_3h::DOUBLE / nullif(departures_3h, 0) AS dep_delay_3h,
  dep_delay_24h::DOUBLE / nullif(departures_24h, 0) AS dep_delay_24h,
  late_3h::DOUBLE / nullif(arrivals_3h, 0) AS late_share_3h,
  late_24h::DOUBLE / nullif(arrivals_24h, 0) AS late_share_24h,
  arr_delay_24h::DOUBLE / nullif(arrivals_24h, 0) AS arr_delay_24h
FROM sums
