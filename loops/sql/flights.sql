-- One row a flight: what is known an hour before its planned departure, and whether it arrived 15 or more minutes late.
--
-- Times. `time_hour` is the hour of the planned departure in UTC, so the plan is time_hour + minute, and the actual
-- departure is the plan + dep_delay. The arrival clock is not read: arr_time is local to the destination, lacks the
-- day, and some airports' zones are unknown. The flight is called arrived at departure + time in the air + 4 hours on
-- the ground. No flight of 2013 spent that long taxiing (the longest: 3 h 55 min), so no label is known too early.
--
-- Cancelled and diverted flights (2.8 %) have no arrival delay and so never get a label: nobody learns from them and no
-- model is judged on them. Their rows stay, as the question is asked of them too: an hour before, nobody knows.
WITH planned AS (
  SELECT *, time_hour + to_minutes(minute) AS planned_at FROM flights
)
SELECT
  carrier || flight || '-' || origin || dest || '-' || strftime(make_date(year, month, day), '%Y%m%d') AS flight_id,
  planned_at - INTERVAL 1 HOUR AS predicted_at,
  carrier,
  origin,
  dest,
  distance,
  month,
  isodow(make_date(year, month, day)) AS weekday,
  -- The planned departure in New York's time, as printed in the timetable.
  hour,
  minute,
  hour * 60 + minute AS minute_of_day,
  -- The planned time under way, folded into 12 hours: the two clocks may be up to 6 zones apart.
  ((sched_arr_time // 100 * 60 + sched_arr_time % 100) - (hour * 60 + minute) + 1440) % 720 AS planned_minutes,
  arr_delay >= 15 AS late,
  CASE WHEN arr_delay IS NOT NULL
    THEN planned_at + to_minutes(dep_delay) + to_minutes(air_time) + INTERVAL 4 HOURS END AS arrived_at
FROM planned
