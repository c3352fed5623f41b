{{- define "mayfly.name" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 40 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "mayfly.installation" -}}
{{ .Values.installation | default (printf "%s-%s" .Release.Namespace .Release.Name | trunc 63 | trimSuffix "-") }}
{{- end }}

{{- define "mayfly.functionsNamespace" -}}
{{ .Values.namespaces.functions | default (printf "%s-functions" .Release.Namespace) }}
{{- end }}

{{- define "mayfly.buildsNamespace" -}}
{{ .Values.namespaces.builds | default (printf "%s-builds" .Release.Namespace) }}
{{- end }}

{{- /* Who a pod is: what selectors ask for. Argument: (list $ "component"). */}}
{{- define "mayfly.selector" -}}
app.kubernetes.io/name: {{ (index . 0).Chart.Name }}
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{- define "mayfly.labels" -}}
{{ include "mayfly.selector" . }}
app.kubernetes.io/version: {{ (index . 0).Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ (index . 0).Release.Service }}
helm.sh/chart: {{ printf "%s-%s" (index . 0).Chart.Name (index . 0).Chart.Version }}
{{- end }}

{{- define "mayfly.metadata" -}}
name: {{ include "mayfly.name" (index . 0) }}-{{ index . 1 }}
namespace: {{ (index . 0).Release.Namespace }}
labels:
  {{- include "mayfly.labels" . | nindent 2 }}
{{- end }}

{{- define "mayfly.image" -}}
{{ .Values.image.repository | default (printf "%s/mayfly" .Values.registry.address) }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- define "mayfly.demoImage" -}}
{{ .Values.image.demo | default (printf "%s-demo" (include "mayfly.image" .)) }}
{{- end }}

{{- define "mayfly.backends" -}}
{{- if .Values.buildBackends }}{{ .Values.buildBackends }}
{{- else if eq .Values.driver "knative" }}layers,kaniko
{{- else if .Values.registry.address }}bundle,kaniko
{{- else }}bundle{{ end }}
{{- end }}

{{- define "mayfly.databaseSecret" -}}
{{ .Values.database.existingSecret | default (printf "%s-database" (include "mayfly.name" .)) }}
{{- end }}

{{- define "mayfly.registrySecret" -}}
{{- if .Values.registry.auth.existingSecret }}{{ .Values.registry.auth.existingSecret }}
{{- else if .Values.registry.auth.username }}{{ include "mayfly.name" . }}-registry{{ end }}
{{- end }}

{{- define "mayfly.bucketSecret" -}}
{{- if .Values.bucket.credentials.existingSecret }}{{ .Values.bucket.credentials.existingSecret }}
{{- else if or .Values.demo .Values.bucket.credentials.accessKeyId }}{{ include "mayfly.name" . }}-bucket{{ end }}
{{- end }}

{{- define "mayfly.bucketName" -}}
{{ .Values.bucket.name | default (ternary "mayfly" "" .Values.demo) }}
{{- end }}

{{- define "mayfly.bucketEndpoint" -}}
{{- if include "mayfly.demoStorage" . }}http://{{ include "mayfly.name" . }}-demo-storage.{{ .Release.Namespace }}.svc.{{ .Values.clusterDomain }}:9000
{{- else }}{{ .Values.bucket.endpoint }}{{ end }}
{{- end }}

{{- /* Not empty where the release brings the database, or the bucket. */}}
{{- define "mayfly.demoPostgres" -}}
{{ if and .Values.demo (not .Values.database.url) (not .Values.database.existingSecret) }}yes{{ end }}
{{- end }}

{{- define "mayfly.demoStorage" -}}
{{ if and .Values.demo (not .Values.bucket.name) }}yes{{ end }}
{{- end }}

{{- /* What a Secret of this release has under a key, so that an upgrade does not change it; made
       by chance where there is none yet. Argument: (list $ "secret" "key"). */}}
{{- define "mayfly.kept" -}}
{{- $secret := lookup "v1" "Secret" (index . 0).Release.Namespace (index . 1) }}
{{- if and $secret (hasKey $secret.data (index . 2)) }}{{ index $secret.data (index . 2) | b64dec }}
{{- else }}{{ randAlphaNum 24 }}{{ end }}
{{- end }}

{{- define "mayfly.indexSecret" -}}
{{- if .Values.index.existingSecret }}{{ .Values.index.existingSecret }}
{{- else if .Values.index.variables }}{{ include "mayfly.name" . }}-index{{ end }}
{{- end }}

{{- define "mayfly.publicUrl" -}}
{{ .Values.publicUrl | default (printf "%s://localhost:8080" (ternary "https" "http" (ne .Values.gateway.tls.existingSecret ""))) }}
{{- end }}
