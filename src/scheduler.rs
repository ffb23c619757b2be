//! The built-in scheduler: run, pause, run again, until a signal comes.

use std::time::{Duration, Instant};

use log::info;

use crate::stop;

/// Calls `job` again and again. A failing job is its own affair: it has logged
/// what went wrong, and the next one starts anew.
pub fn run(interval: Duration, run_immediately: bool, mut job: impl FnMut()) {
    let minutes = interval.as_secs() / 60;
    let every = if minutes.is_multiple_of(60) {
        format!("每 {} 小时", minutes / 60)
    } else {
        format!("每 {minutes} 分钟")
    };
    info!("🕐 定时任务模式");
    info!("   刷新间隔: {every}");
    info!("   立即执行: {}", if run_immediately { "是" } else { "否" });
    info!("✅ 定时任务已启动，{every}执行一次");
    let mut next_start = Instant::now();
    if !run_immediately {
        next_start += interval;
    }
    loop {
        stop::sleep_until(next_start);
        if stop::requested().is_some() {
            info!("🛑 定时任务已停止");
            return;
        }
        job();
        next_start = Instant::now() + interval;
    }
}
