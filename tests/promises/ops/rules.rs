//! The alert rules, as Prometheus itself judges them.

use super::{checker, must_pass, script};

#[test]
fn the_alert_rules_fire_when_they_should() {
    let Some(mut promtool) = checker("promtool") else { return };
    must_pass(promtool.args(["check", "rules"]).arg(script("prometheus/refresh_baoming_tokens.rules.yml")));
    let mut promtool = checker("promtool").expect("as above");
    must_pass(promtool.args(["test", "rules"]).arg(script("prometheus/refresh_baoming_tokens.test.yml")));
}
