//! The SDK's conformance suites, on a plugin of a library.

use taq_plugin::conformance::{
    Begins, ObserverUnderTest, PolicyUnderTest, RounderUnderTest, check_observer, check_policy, check_rounder,
};

use super::declared::{NativeItem, Table};

pub use taq_plugin::conformance::Report;

impl NativeItem {
    /// Holds the plugin to what is expected of its kind, with these settings (a JSON object). Of each check is told before it
    /// begins, for a call of a library may never return.
    pub fn check(&self, settings: &str, begins: Begins<'_>) -> Report {
        match self.table {
            Table::Observer(table) => check_observer(&ObserverUnderTest::of_table(table, settings), begins),
            Table::Rounder(table) => check_rounder(&RounderUnderTest::of_table(table, settings), begins),
            Table::Policy(table) => check_policy(&PolicyUnderTest::of_table(table, settings), begins),
        }
    }
}
