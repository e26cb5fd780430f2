// Draws a dashboard whose queries have been asked (`window.DASHBOARD`), with Grafana's own panels.
import { createElement as h } from "react";
import { createRoot } from "react-dom/client";
import { createTheme, dateTime, FieldColorModeId, FieldType, getDisplayProcessor, toDataFrame } from "@grafana/data";
import { GlobalStyles, PanelChrome, ThemeContext, TimeSeries } from "@grafana/ui";
import "uplot/dist/uPlot.min.css";

const WIDTH_PX = 1560, COLUMN_PX = WIDTH_PX / 24, ROW_PX = 30, GAP_PX = 8;
// What Grafana assumes of a line that does not say.
const LINE = { drawStyle: "line", lineInterpolation: "linear", pointSize: 5, axisPlacement: "auto", spanNulls: false };

function frames(panel, theme) {
  const { defaults } = panel.fieldConfig;
  const palette = theme.visualization.palette;
  return panel.series.map((line, seriesIndex) => {
    const color = { mode: FieldColorModeId.Fixed, fixedColor: palette[seriesIndex % palette.length] };
    const frame = toDataFrame({
      fields: [
        { name: "Time", type: FieldType.time, values: line.times, config: {} },
        {
          name: line.name, type: FieldType.number, values: line.values, state: { seriesIndex },
          config: { ...defaults, displayName: line.name, color, custom: { ...LINE, ...defaults.custom } },
        },
      ],
    });
    for (const field of frame.fields) field.display = getDisplayProcessor({ field, theme, timeZone: "utc" });
    return frame;
  });
}

function Panel({ panel, range, theme }) {
  const { x, y, w, h: rows } = panel.gridPos;
  const size = { width: w * COLUMN_PX - GAP_PX, height: rows * ROW_PX - GAP_PX };
  const style = { position: "absolute", left: x * COLUMN_PX + GAP_PX / 2, top: y * ROW_PX + GAP_PX / 2 };
  const legend = { ...panel.options.legend, showLegend: true, calcs: [] };
  const chart = (width, height) => panel.series.length === 0 ? h("p", { style: { textAlign: "center", paddingTop: height / 3, color: theme.colors.text.secondary } }, "No data") :
    h(TimeSeries, { frames: frames(panel, theme), structureRev: 1, theme, timeRange: range, timeZone: "utc", width, height, options: {}, legend });
  return h("div", { style }, h(PanelChrome, { title: panel.title, ...size }, chart));
}

function Dashboard({ dashboard }) {
  const theme = createTheme({ colors: { mode: "dark" } });
  const [from, to] = [dateTime(dashboard.from), dateTime(dashboard.to)];
  const range = { from, to, raw: { from, to } };
  const rows = Math.max(...dashboard.panels.map((panel) => panel.gridPos.y + panel.gridPos.h));
  const style = { position: "relative", width: WIDTH_PX, height: rows * ROW_PX };
  return h(ThemeContext.Provider, { value: theme }, h(GlobalStyles),
    h("div", { style, id: "drawn" }, dashboard.panels.map((panel) => h(Panel, { key: panel.id, panel, range, theme }))));
}

createRoot(document.getElementById("root")).render(h(Dashboard, { dashboard: window.DASHBOARD }));
