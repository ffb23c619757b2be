//! Keeps the login tokens of the 报名工具 service alive.

fn main() {}
