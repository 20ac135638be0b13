-- Hourly weather at the three airports. `time_hour` is the hour's start in UTC and the observation may fall anywhere in
-- the hour, so a row counts as known when the hour is over.
SELECT
  origin,
  time_hour + INTERVAL 1 HOUR AS observed_until,
  temp::DOUBLE AS temp,
  dewp::DOUBLE AS dewp,
  humid::DOUBLE AS humid,
  wind_speed::DOUBLE AS wind_speed,
  wind_gust::DOUBLE AS wind_gust,
  precip::DOUBLE AS precip,
  pressure::DOUBLE AS pressure,
  visib::DOUBLE AS visib
FROM weather
