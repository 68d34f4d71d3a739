// The result table can be sorted and searched; without this script it is the same table as it stands.
"use strict";
for (const table of document.querySelectorAll("table.sortable")) {
  new DataTable(table, {
    paging: false, autoWidth: false, order: [],
    layout: {topStart: "search", topEnd: "info", bottomStart: null, bottomEnd: null},
    language: {search: "Only lines with:", info: "_TOTAL_ lines", infoEmpty: "no lines", infoFiltered: "of _MAX_"},
  });
}
