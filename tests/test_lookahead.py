"""Which SQL sees rows that came later: what surely does is named with its line, what is honest is let pass."""

from __future__ import annotations

from pathlib import Path

import pytest
from good_loop import changed, with_views, write_good, write_loop
from treadle.check import Finding, check

HEAD = "select order_id, placed_at, region, amount, late, delivered_at"
RATES = "select region, avg(late) as rate from orders group by region"
DAYS = "select region, date_trunc('day', placed_at) as day, sum(amount) as spent from orders group by all"
PAIRS = "left join orders p on p.region = o.region"

AHEAD = {
    "the whole table": f"{HEAD}, count(*) over () as n from orders",
    "a whole group": f"{HEAD}, avg(late) over (partition by region) as rate from orders",
    "a total": f"{HEAD}, (select avg(amount) from orders) as mean from orders",
    "another group's total": f"{HEAD}, (select avg(p.late) from orders p where p.region = o.region) as rate"
    " from orders o",
    "order by a value": f"{HEAD}, rank() over (order by amount) as place from orders",
    "order by a value within a group": f"{HEAD}, sum(amount) over (partition by region order by amount) as s"
    " from orders",
    "order by the hour of the day": f"{HEAD}, sum(amount) over (order by hour(placed_at)) as s from orders",
    "the next row": f"{HEAD}, lead(amount) over (partition by region order by placed_at) as next from orders",
    "the next row, counted down": f"{HEAD}, lag(amount) over (order by placed_at desc) as next from orders",
    "minus one back": f"{HEAD}, lag(amount, -1) over (order by placed_at) as next from orders",
    "time to the next row": f"{HEAD}, lead(placed_at) over (order by placed_at) - placed_at as gap from orders",
    "a frame to the end": f"{HEAD}, last_value(amount) over (order by placed_at rows between current row and"
    " unbounded following) as last from orders",
    "a centred frame": f"{HEAD}, avg(amount) over (order by placed_at rows between 3 preceding and 3 following)"
    " as smooth from orders",
    "a named window": f"{HEAD}, avg(amount) over w as smooth from orders window w as (order by placed_at range"
    " between interval 1 day preceding and interval 1 day following)",
    "from new to old": f"{HEAD}, sum(amount) over (order by placed_at desc) as rest from orders",
    "numbered from new to old": f"{HEAD}, row_number() over (order by placed_at desc) as nth from orders",
    "a share of all": f"{HEAD}, percent_rank() over (order by placed_at) as share from orders",
    "a group joined back": f"with rates as ({RATES}) {HEAD}, rate from orders join rates using (region)",
    "a group joined back, twice removed": f"with rates as ({RATES}), more as (select region, rate * 2 as twice"
    f" from rates) {HEAD}, twice from orders join more using (region)",
    "a group by the hour": f"with rates as (select hour(placed_at) as hour, avg(late) as rate from orders group"
    f" by all) {HEAD}, rate from orders join rates on rates.hour = hour(orders.placed_at)",
    "days summed again": f"with days as ({DAYS}), sums as (select region, avg(spent) as usual from days group by"
    f" region) {HEAD}, usual from orders join sums using (region)",
    "a self-join without time": "select o.order_id, o.placed_at, o.region, o.amount, o.late, o.delivered_at,"
    f" count(p.order_id) as others from orders o {PAIRS} group by all",
    "a self-join without an upper bound": "select o.order_id, o.placed_at, o.region, o.amount, o.late,"
    f" o.delivered_at, count(p.order_id) as others from orders o {PAIRS} and p.placed_at > o.placed_at -"
    " interval 7 days group by all",
    "whether any row": f"{HEAD}, exists (select 1 from orders p where p.region = o.region and p.amount >"
    " o.amount) as topped from orders o",
    "the newest of all": f"{HEAD}, (select p.amount from orders p order by p.placed_at desc limit 1) as newest"
    " from orders",
    "an aggregate that sqlglot takes for any function": f"with m as (select region, mad(amount) as spread from"
    f" orders group by region) {HEAD}, spread from orders join m using (region)",
    "within a union": f"{HEAD}, 0.0 as rate from orders where amount < 5 union all {HEAD}, avg(late) over () as"
    " rate from orders where amount >= 5",
    "through a star": "with all_orders as (select *, avg(amount) over () as mean from orders) select *"
    " from all_orders",
    "rows of the same time, over all times": f"with days as ({DAYS}) {HEAD}, avg(spent) over (partition by region)"
    " as usual from orders join days using (region) where days.day = date_trunc('day', orders.placed_at)",
    "rows of the same time, from new to old": f"with days as ({DAYS}) {HEAD}, sum(spent) over (order by day desc)"
    " as rest from orders join days using (region) where days.day = date_trunc('day', orders.placed_at)",
    "in a fixed stretch": f"{HEAD}, avg(amount) over () as mean from orders where placed_at < date '2025-01-01'",
    "lateral": f"{HEAD}, m from orders o, lateral (select max(p.amount) as m from orders p where p.region ="
    " o.region) x",
}
HONEST = {
    "plain": f"{HEAD} from orders",
    "what came before": f"{HEAD}, sum(amount) over (partition by region order by placed_at) as spent from orders",
    "rows before": f"{HEAD}, avg(amount) over (order by placed_at rows between 10 preceding and 1 preceding) as a"
    " from orders",
    "a stretch of time before": f"{HEAD}, count(*) over (order by placed_at range between interval 7 days"
    " preceding and current row) as n from orders",
    "the row before": f"{HEAD}, lag(amount) over (partition by region order by placed_at) as before from orders",
    "the row before, counted down": f"{HEAD}, lead(amount) over (order by placed_at desc) as before from orders",
    "downwards to the end": f"{HEAD}, sum(amount) over (order by placed_at desc rows between current row and"
    " unbounded following) as spent from orders",
    "numbered": f"{HEAD}, row_number() over (partition by region order by placed_at) as nth from orders",
    "ordered by such a number": "with n as (select *, row_number() over (order by placed_at) as nth from orders)"
    f" {HEAD}, sum(amount) over (order by nth) as spent from n",
    "duplicates removed": f"{HEAD} from orders qualify row_number() over (partition by order_id order by"
    " placed_at desc) = 1",
    "duplicates removed in a part": "with once as (select *, row_number() over (partition by order_id order by"
    f" delivered_at desc) as nth from orders) {HEAD} from once where nth = 1",
    "within a day": f"{HEAD}, count(*) over (partition by placed_at::date) as n from orders",
    "days joined by time": f"with days as ({DAYS}) {HEAD}, spent from orders join days using (region)"
    " where days.day = date_trunc('day', orders.placed_at) - interval 1 day",
    "a window over days": f"with days as ({DAYS}), past as (select region, day as placed_at, sum(spent) over"
    f" (partition by region order by day rows between 7 preceding and 1 preceding) as week from days) {HEAD},"
    " week from orders asof join past using (region, placed_at)",
    "a self-join of what came before": "select o.order_id, o.placed_at, o.region, o.amount, o.late,"
    f" o.delivered_at, count(p.order_id) as others from orders o {PAIRS} and p.placed_at < o.placed_at group by"
    " all",
    "a window over what came before": "select o.order_id, o.placed_at, o.region, o.late, o.delivered_at,"
    " avg(p.amount) over (partition by o.order_id) as amount from orders o join orders p on p.placed_at <"
    " o.placed_at",
    "a query of what came before": f"{HEAD}, (select avg(p.late) from orders p where p.region = o.region and"
    " p.delivered_at < o.placed_at) as rate from orders o",
    "any row of before": f"{HEAD}, exists (select 1 from orders p where p.placed_at < o.placed_at) as any_before"
    " from orders o",
    "lateral, of before": f"{HEAD}, m from orders o left join lateral (select max(p.amount) as m from orders p"
    " where p.region = o.region and p.placed_at < o.placed_at) x on true",
    "a difference of times": f"{HEAD}, (select count(*) from orders p where date_diff('day', p.placed_at,"
    " o.placed_at) between 1 and 7) as n from orders o",
    "the label": "select order_id, placed_at, region, amount, lead(late) over (order by placed_at) as late,"
    " lead(delivered_at) over (order by placed_at) as delivered_at from orders",
    "a time that settles it": "select order_id, max(placed_at) as placed_at, any_value(region) as region,"
    " sum(amount) as amount, max(late) as late, max(delivered_at) as delivered_at from orders group by order_id",
    "joined once all was seen": "with m as (select region, avg(late) as rate, max(delivered_at) as seen from"
    f" orders group by region) {HEAD}, rate from orders join m using (region) where m.seen <"
    " orders.placed_at",
    "a fixed past": f"{HEAD}, (select avg(amount) from orders where placed_at < timestamp '2023-12-01') as mean"
    " from orders",
    "of what has no time": "with sizes as (select * from (values ('north', 3), ('south', 4)) s(region, size))"
    f", totals as (select sum(size) as total from sizes) {HEAD}, total from orders cross join totals",
    "lists": f"{HEAD}, list_sum([amount, 1.0]) as s from orders",
}


def find(folder: Path, sql: str, changes: dict[str, object] | None = None) -> list[Finding]:
    write_good(folder)
    (folder / "orders.sql").write_text(sql)
    path = write_loop(folder, changed(changes or {}))
    found = check(path, only=["TR118", "TR031", "TR034"])
    assert {f.code for f in found} <= {"TR118"}, found
    return found


@pytest.mark.parametrize("sql", AHEAD.values(), ids=AHEAD)
def test_a_value_of_later_rows_is_named(tmp_path: Path, sql: str) -> None:
    (finding,) = find(tmp_path, sql)
    assert finding.severity == "warning"
    assert Path(finding.file).name == "orders.sql"


@pytest.mark.parametrize("sql", HONEST.values(), ids=HONEST)
def test_what_is_made_of_earlier_rows_passes(tmp_path: Path, sql: str) -> None:
    assert find(tmp_path, sql) == []


def test_the_expression_its_line_and_the_columns_are_named(tmp_path: Path) -> None:
    sql = (
        "with rates as (\n  select region,\n    avg(late) as rate\n  from orders group by region\n)\n"
        f"{HEAD}, rate, rate * 2 as twice,\n  count(*) over ()\nfrom orders join rates using (region)"
    )
    rate, count = find(tmp_path, sql)
    assert (rate.line, count.line) == (3, 7)
    assert "`AVG(late)` enters rate, twice: its GROUP BY (region) has no time" in rate.evidence
    assert "`COUNT(*) OVER ()` enters count() OVER ()" in count.evidence


LATER = (
    f"{HEAD}, lead(amount) over w as next, lead(placed_at) over w as next_at from orders window w as (order"
)
LATER += " by placed_at)"


@pytest.mark.parametrize(
    "changes",
    [
        {"data.tables.orders.known_at_of": {"next": "next_at"}},
        {"data.leakage.allow": {"next": "the plan is fixed", "next_at": "the plan is fixed"}},
        {"features": {"columns": ["amount", "region"]}},
    ],
    ids=["known later", "allowed", "not used"],
)
def test_a_value_that_no_model_sees_too_early_passes(tmp_path: Path, changes: dict[str, object]) -> None:
    assert len(find(tmp_path / "plain", LATER)) == 2
    assert find(tmp_path / "said", LATER, changes) == []


def test_a_view_that_looks_ahead_is_named_unless_its_feature_is_allowed(tmp_path: Path) -> None:
    path = write_good(tmp_path)
    content = with_views(tmp_path)
    (tmp_path / "load.sql").write_text(
        "select region, known_at,\n  open_orders / max(open_orders) over () as open_orders from load"
    )
    write_loop(tmp_path, content)
    (finding,) = check(path, only=["TR118"])
    assert (Path(finding.file).name, finding.line) == ("load.sql", 2)
    content["data"]["leakage"] = {"allow": {"load__open_orders": "the most that fits is written on the gate"}}
    write_loop(tmp_path, content)
    assert check(path, only=["TR118"]) == []


def test_times_that_the_sources_hold_as_numbers_count_as_times(tmp_path: Path) -> None:
    write_good(tmp_path)
    (tmp_path / "events.csv").write_text("order_id,moment,amount,late\no1,1704067200,3.5,1\n")
    head = "select order_id, to_timestamp(moment) as placed_at, late, to_timestamp(moment) as delivered_at"
    asked = {"data.sources.orders": "events.csv", "gate.slices": ["amount"]}
    (tmp_path / "orders.sql").write_text(f"{head}, sum(amount) over (order by moment) as amount from orders")
    path = write_loop(tmp_path, changed(asked))
    assert check(path, only=["TR118", "TR034"]) == []
    (tmp_path / "orders.sql").write_text(f"{head}, sum(amount) over (order by late) as amount from orders")
    assert [f.code for f in check(path, only=["TR118", "TR034"])] == ["TR118"]


def test_what_can_not_be_followed_is_said(tmp_path: Path) -> None:
    path = write_good(tmp_path)
    (tmp_path / "orders.sql").write_text(
        "select order_id, placed_at, columns('reg.*|am.*|late|del.*') from orders"
    )
    (finding,) = check(path, only=["TR118"])
    assert (finding.code, finding.severity) == ("TR003", "info")
    assert "looks ahead" in finding.evidence


def test_the_reason_for_a_look_ahead_is_kept(tmp_path: Path) -> None:
    (finding,) = find(
        tmp_path, AHEAD["the whole table"], {"ignore": {"TR118": "the plan of the year is known"}}
    )
    assert finding.ignored_because == "the plan of the year is known"


def test_the_flights_look_back_only_and_a_careless_edit_is_seen(tmp_path: Path) -> None:
    import shutil

    loops = Path(__file__).parent.parent / "loops"
    shutil.copytree(loops, tmp_path / "loops")
    path = tmp_path / "loops" / "flights.yaml"
    assert [f for f in check(path, only=["TR118", "TR119"]) if f.code != "TR005"] == []
    sql = tmp_path / "loops" / "sql" / "delays.sql"
    text = sql.read_text()
    sql.write_text(
        text.replace(
            "INTERVAL 2 HOURS PRECEDING AND CURRENT ROW", "CURRENT ROW AND INTERVAL 2 HOURS FOLLOWING"
        )
    )
    found = check(path, only=["TR118"])
    assert {Path(f.file).name for f in found} == {"delays.sql"}
    columns = " ".join(f.evidence for f in found)
    assert "late_share_3h" in columns
    assert "late_share_24h" not in columns
