// Clicking a header sorts by its column, first ascending, then descending. Numbers (data-value) sort numerically, texts
// in natural order (a2 before a10), empty cells always last. Equal rows keep their order.
for (const table of document.querySelectorAll('table.sortable')) {
  const headers = [...table.tHead.rows[0].cells];
  headers.forEach((header, column) => header.querySelector('button').addEventListener('click', () => {
    const descending = header.getAttribute('aria-sort') === 'ascending';
    const value = row => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
    const rows = [...table.tBodies[0].rows], filled = rows.filter(row => value(row) !== '');
    const numeric = filled.every(row => Number.isFinite(Number(value(row))));
    const compare = numeric ? (a, b) => Number(value(a)) - Number(value(b))
      : (a, b) => value(a).localeCompare(value(b), undefined, {numeric: true});
    filled.sort((a, b) => descending ? compare(b, a) : compare(a, b));
    table.tBodies[0].append(...filled, ...rows.filter(row => value(row) === ''));
    headers.forEach(other => other.setAttribute('aria-sort', 'none'));
    header.setAttribute('aria-sort', descending ? 'descending' : 'ascending');
  }));
}
